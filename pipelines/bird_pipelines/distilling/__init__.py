"""Phase two: a student is trained from a cache, scored and kept. No teacher is imported here."""
