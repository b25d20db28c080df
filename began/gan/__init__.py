"""The paper: begin with equations, then networks, step, training and loop; schedule, sampling, divergence."""
