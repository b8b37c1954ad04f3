"""One VM looked at: definition, disks, images, state files, secrets, keys. Nothing is changed."""
