"""What train writes while it runs, and how a run goes on."""
