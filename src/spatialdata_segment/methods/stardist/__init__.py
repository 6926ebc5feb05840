"""StarDist: its networks rebuilt from their files, and star-convex objects from what they say."""
