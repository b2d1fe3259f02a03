"""Models on the Hugging Face Hub: read, downloaded, published. The one door to its client."""
