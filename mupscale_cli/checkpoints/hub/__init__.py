"""Reading, downloading and publishing models on the Hugging Face Hub. Only this package uses the Hub's client."""
