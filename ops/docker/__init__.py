"""What the containers need beside the project itself."""
