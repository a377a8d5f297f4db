"""The codec: pictures and images to bytes and back."""
