"""A federation on several machines: who makes which key, what everyone agrees on, and the services that run it."""
