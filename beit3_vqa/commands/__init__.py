"""The commands of `beit3-vqa`, one file each: its flags, and what it calls."""
