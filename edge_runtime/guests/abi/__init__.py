"""What a guest must look like to be run (`detect`), and how a request and a response pass to and from it (`wagi`)."""
