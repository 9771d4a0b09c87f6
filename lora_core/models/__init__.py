"""Where a base model comes from: a package, a GGUF file, a folder, a hub, or code."""
