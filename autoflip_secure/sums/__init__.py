"""What every kind of secure sum shares: channels, integer encoding, the manifest, and the SecureSum seam."""
