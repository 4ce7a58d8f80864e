"""Two models measured alike: every number of the one less that of the other, with an interval over the same images."""
