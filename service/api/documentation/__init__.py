"""The OpenAPI document: responses, examples, request bodies, and the page that shows it."""
