"""Two YOLOs with different classes, merged: boxes found, not only outputs compared."""
