package report

// HTML returns the page.
func HTML(r *Run) ([]byte, error) { return nil, nil }
