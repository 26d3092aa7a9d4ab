"""What distier tells about itself: events, logs."""
