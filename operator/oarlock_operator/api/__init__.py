"""The ModelDeployment API: types of spec and status, their rules, and the CRD made from them. Pure; used everywhere."""
