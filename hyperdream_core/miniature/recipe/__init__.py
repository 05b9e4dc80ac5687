"""The miniature's recipe: from nothing to its published weights, stage by stage."""
