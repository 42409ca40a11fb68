"""Writers of deployment files; each reads its file back and compares it with the network before it leaves it."""
