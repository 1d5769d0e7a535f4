"""What pictures of scenes are rendered by: colours along rays, and colours that depend on where one looks from."""
