"""The miniature's trial: judges, methods on unseen people, tables and guidance curves."""
