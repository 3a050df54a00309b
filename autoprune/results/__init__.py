"""What a search leaves behind: the store, exported models, MLflow runs, figures."""
