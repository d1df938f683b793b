"""Models of open_clip that no family's own modules compute: an installed ``open_clip_torch`` builds their towers."""
