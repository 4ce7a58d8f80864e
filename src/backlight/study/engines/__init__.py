"""What runs the tasks of a study: this process, processes of this machine, or those of a Ray cluster."""
