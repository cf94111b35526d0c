"""Students leave the project here: exported files, checked before they are accepted, and predictions on images."""
