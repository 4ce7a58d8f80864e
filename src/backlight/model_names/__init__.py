"""What a MODEL's name stands for, known without loading it: its parts, its file or folder, its code.  torch is not imported."""
