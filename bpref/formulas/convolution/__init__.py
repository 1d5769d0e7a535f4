"""What is done with windows of images: where they lie, sliding products, values between pixels."""
