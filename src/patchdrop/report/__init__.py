"""Draw pictures, and write the page that shows a trained run.

Takes documents and tensors; its modules are imported one by one, because charts need matplotlib. May import `grid`,
`terminal`.
"""
