from instep.cli import main

main()
