"""Events and logs of distier."""
