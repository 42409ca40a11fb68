"""What a deployment bundle is: its description, preprocessing and checksums; nothing that runs or writes models."""
