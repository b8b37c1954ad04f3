"""What `vmkeep doctor` looks at on a host: the host itself, its VMs, and what operations left behind."""
