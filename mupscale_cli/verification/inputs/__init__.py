"""Random inputs for models: texts, images, sounds, and what libraries and users take."""
