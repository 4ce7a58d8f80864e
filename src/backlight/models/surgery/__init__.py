"""Surgery: replacing branches of a trained model, and blurring its stream, without changing its outputs at first."""
