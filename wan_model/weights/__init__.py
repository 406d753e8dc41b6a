"""Weights files: headers, layouts, GGUF, quantisation, tokenizers and LoRA names."""
