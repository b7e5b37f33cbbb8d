"""Every MQTT topic and payload between device and fleet (DESIGN §7).

`topics` names them, `messages` types them, `enrolment` holds the file and the HTTP exchange by which a device joins,
`states` maps what an agent says to what the fleet counts.
Unknown fields are ignored, unknown versions refused; every message is idempotent.
"""
