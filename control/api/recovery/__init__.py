"""What operators ask after data was lost: whether the bucket has all artifacts (`store_check`), and what nodes run that
restored metadata don't know (`recover`)."""
