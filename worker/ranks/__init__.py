"""The processes of one tensor-parallel replica: rank 0 decides, the others follow."""
