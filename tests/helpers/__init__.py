"""What several test files share: data, servers, processes, a browser."""
