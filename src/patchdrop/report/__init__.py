"""Pictures, and the page that shows a trained run; imported one by one, because charts need matplotlib."""
