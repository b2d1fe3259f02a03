"""What people read: explanations, outlines, guidance, pictures."""
