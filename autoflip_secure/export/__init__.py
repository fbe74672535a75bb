"""A finished run's pruned network for inference elsewhere: safetensors, torch.export and ONNX, and what they gain."""
