"""What everything stands on: files, parallel work, seeds, progress, addresses, transfer over HTTP."""
