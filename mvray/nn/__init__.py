"""Parts of torch that several methods use, or that are worth a test of their own."""
