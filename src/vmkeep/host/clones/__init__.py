"""A second VM made of one that is off, and a VM given another name."""
