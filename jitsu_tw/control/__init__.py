"""The control endpoint, over HTTP: it shows the VMs and carries out what operators want."""
