"""The compiler's passes: one file, one pass, one public function."""
