"""What the commands share: the API's client, output, projects and toolchains. Start with client."""
