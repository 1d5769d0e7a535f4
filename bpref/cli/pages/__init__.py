"""Reports as pages that stand by themselves."""
