"""What the latents are drawn from, and how they become bytes (source coding)."""
