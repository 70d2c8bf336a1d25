"""The architecture: the size table, its blocks, the network, weights in files."""
