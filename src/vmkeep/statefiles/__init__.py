"""State files of VMs on this host: swtpm's directories and NVRAM files, read, put in place and removed."""
